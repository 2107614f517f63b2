"""What people look at: grids, curves, and the page that holds everything."""
