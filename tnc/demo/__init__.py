"""The demonstration: LeNet-5 on MNIST, compressed with every decomposition."""
