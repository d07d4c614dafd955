"""What is read: lists, image and label files, their classes and colours, and the check of all of it."""
