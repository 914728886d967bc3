"""What lets programs for robots run a bundle as it is: a policy as they call one, and their plugins. Free of torch."""
