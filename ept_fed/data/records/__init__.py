"""What is known of each image before it is opened, and the counts that follow from it."""
