"""FedLESAM's studies, and the federations that they and FedGELA's are run on."""
