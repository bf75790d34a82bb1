"""Real models measured: sparsity and KV traces, predictors trained and judged (torch, transformers).

`traces.collect` measures a model, `traces.show` prints and draws what was found, `traces.shadow` trains and
judges predictors, `traces.pretrain` made the two models that ship, `traces.relufy` makes a ReLU model of
another. The simulator reads the files and never imports this package.
"""
