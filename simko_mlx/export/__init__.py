"""A run's adapter for other programs and for the Hugging Face Hub."""
