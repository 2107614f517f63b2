"""What `campaign.py` tries: one module per kind of trial."""
