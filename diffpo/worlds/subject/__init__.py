"""The subject world: one thing that no caption of the shapes world can name, and four pictures of it.

The subject is a square whose left half is red and whose right half is yellow. Its prompts are the shapes world's, with
a rare word in the colour's place (`scenes`); four pictures show it always in the same surroundings (`pictures`); two
exact measures say how well an image shows the subject, and how well it shows the rest of its prompt (`verify`).
"""
