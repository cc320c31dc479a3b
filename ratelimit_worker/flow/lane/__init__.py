"""What is decided of a lane as a whole: by the law, or by a person."""
