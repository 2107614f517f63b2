"""What makes and labels pair tables: `diffpo data ...`. Training never comes here."""
