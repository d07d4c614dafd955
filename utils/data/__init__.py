"""Input data: lists, image and label files, classes with their colours, augmentation, and the check of all files."""
