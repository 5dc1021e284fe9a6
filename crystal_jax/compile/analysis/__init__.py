"""Analysis of compiled programs: operations, HBM traffic and collectives, compared with the model's equations."""
