"""One module per verb of the command line; each is its main function and what that needs."""
