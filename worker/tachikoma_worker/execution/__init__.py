"""One execution from verified order to signed receipt."""
