"""Programs that can run other programs, and variables that change the code a program loads."""
