# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Prediction from the expression of genes, in parts:

- ``data``: the sets, and the folds of each;
- ``linear_references``: penalised regressions for a number;
- ``class_references``: penalised logistic and multinomial regressions for classes;
- ``net``: the elastic net for classes;
- ``horseshoe``: the regularised horseshoe by NumPyro's NUTS;
- ``spikes``: spikes and slabs with a learned width by Gibbs;
- ``fits``: all methods by name, and their figures on a fold;
- ``selections``: the genes that every fit selected, and how much those of two folds overlap;
- ``report``: the table.
"""
