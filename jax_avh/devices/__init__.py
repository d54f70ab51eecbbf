"""The devices: what lies where, and passes over all frames or examples of a source."""
