"""From a log of events to a Hugging Face model of what a user does next."""
