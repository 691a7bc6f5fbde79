"""Who reads which example when: a function of seed, epoch and progress, with no reading."""
