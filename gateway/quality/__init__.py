"""What guided answers are worth, told from a sample of them: each beside the answers of both engines alone."""
