from .fedgela import *
