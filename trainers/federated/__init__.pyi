from .fedlesam import *
