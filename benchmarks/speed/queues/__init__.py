"""Task queues on the same tasks: apps as each queue's workers import them, and programs that feed and await them."""
