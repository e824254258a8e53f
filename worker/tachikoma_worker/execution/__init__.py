"""One execution, from the signed order to the signed receipt."""
