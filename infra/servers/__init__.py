"""Server binaries of the embedded deployment: where they come from and who may run them."""
