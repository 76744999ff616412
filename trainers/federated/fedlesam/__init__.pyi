from .strategy import FedLESAM as FedLESAM
