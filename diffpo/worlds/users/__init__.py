"""The users world: simulated people with tastes of their own, who look at pictures of the shapes world.

It draws and checks nothing itself: scenes, pictures and the exact verifier are those of `diffpo.worlds.shapes`. What is
new is who looks (`people`). `scripts/build_users.py` makes their pairs anew.
"""
