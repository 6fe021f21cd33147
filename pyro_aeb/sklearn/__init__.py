# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Estimators of scikit-learn, for who knows no Pyro. They need the extra ``sklearn``::

    from pyro_aeb.sklearn import SparseRegressor

    fitted = SparseRegressor(random_state=0).fit(X, y)
    fitted.inclusion_               # the probability of every feature that it is in
    fitted.predict_interval(X_new)  # between which two values 90 % of new y are
    fitted.check_                   # whether the run can be relied on

Features are centred and scaled inside, and linear estimators have an intercept. They go into
pipelines and grid searches as those of scikit-learn do.
"""

from pyro_aeb.sklearn.linear import SparseClassifier, SparseRegressor
from pyro_aeb.sklearn.networks import NetworkClassifier, NetworkRegressor

__all__ = ["NetworkClassifier", "NetworkRegressor", "SparseClassifier", "SparseRegressor"]
