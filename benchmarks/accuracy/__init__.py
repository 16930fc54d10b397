"""Accuracy that really trained networks keep after compression without any training: controls, and ours beside them.

``python -m benchmarks.accuracy run --networks resnet20 --shares 0.5 --rows svd tucker`` measures what its state file
does not hold yet, so that a killed run goes on where it ended. ``python -m benchmarks.accuracy table`` writes the
table and the picture from that file.
"""
