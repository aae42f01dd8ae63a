"""Who may call, which routes they see, and how guidance is made on each."""
