"""Real inputs one step late, adjoints from the AuxNet: layer-parallel training without an exchange of examples.

method  what the method says of itself
step    the step, with its drawing and equations
"""
