"""What passes between the stages: alphabet, labels, checkpoint, bundle, manifest.

Standard library and numpy only.
"""
