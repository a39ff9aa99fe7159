"""What the answers of classifiers are worth: by class, by number of labels, and image by image."""
