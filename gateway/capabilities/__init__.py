"""What each kind of engine supports, as data."""
