"""Changing models: weights replaced, models saved and loaded, layers made dense again."""
