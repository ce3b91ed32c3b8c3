"""What a person does after training."""
