"""The decompositions of this project. They are registered by entry points, as other plugins are."""
