"""What other training libraries read, one module per format."""
