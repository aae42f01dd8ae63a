"""Tables of the features that each kind of engine supports."""
