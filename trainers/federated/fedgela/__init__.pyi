from .strategy import FedGELA as FedGELA
