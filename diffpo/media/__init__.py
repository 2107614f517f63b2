"""Pictures and clips on the disk: media folders with their manifests, and the prompts that they are made for."""
