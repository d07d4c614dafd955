"""What comes out: the scores of an image, the masks written from them and how well they fit the labels."""
