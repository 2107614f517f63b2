"""The one way in which images are made of prompts."""
