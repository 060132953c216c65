"""The ten actions of the puppet world that no generative model is ever trained on; quick to import."""

# Large, clearly visible movements, unlike the others, whose names are made of words that no training caption has.
UNSEEN = ("hammer", "ladder", "jacks", "karate", "cartwheel", "row", "robot", "toe_touch", "sumo", "ski")
