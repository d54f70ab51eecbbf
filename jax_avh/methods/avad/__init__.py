"""AVAD: learns how far sound runs from picture in real videos, and finds videos where it runs otherwise."""
