"""What is told to people: figures, states, findings. One function a question, the same for every face."""
