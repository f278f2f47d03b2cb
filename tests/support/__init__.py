"""What tests share: a loopback OpenAI server, tiny checkpoints, a tiny world."""
