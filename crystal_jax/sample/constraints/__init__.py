"""What a sample may be: masks on the device, and constraints that the host answers."""
