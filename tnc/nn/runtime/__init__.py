"""Running layers: plans by size, autograd, memory, what is kept from call to call."""
