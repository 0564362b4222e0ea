"""Named pairs of everything that the library has, which the contracts are checked on."""

import pyro_dssm as dssm

X, Z = 3, 4
MODEL = {"rnn_dim": 5, "mlp_dims": (6,)}
GUIDE = {"rnn_dim": 5, "hidden_dim": 6}
POWER = ("itakura-saito", "gamma", "log-normal", "power-gaussian")


def zoo(name):
    cls = dssm.ZOO[name]
    if cls is dssm.RNN:
        model = cls(X, emission="gaussian", **MODEL)
        return model, dssm.NoLatents(model)
    model = cls(X, Z, emission="gaussian", **MODEL)
    return model, dssm.FullAlignment(model, **GUIDE)


def guided(name, flow=None, **options):
    model = dssm.ArSSM(X, Z, emission="gaussian", **MODEL, **options)
    guide = dssm.GUIDES[name](model, **GUIDE)
    return model, guide if flow is None else dssm.FlowGuide(guide, 2, 8, conditional=flow)


def emitting(kind, x_dim=X, structure=dssm.RSSM, skip=False, **options):
    model = structure(x_dim, Z, emission=kind, emission_options=options, skip=skip, **MODEL)
    return model, dssm.FullAlignment(model, skip=skip, **GUIDE)


def starting(initial, **options):
    model = dssm.RSSM(X, Z, emission="gaussian", initial=initial, **MODEL, **options)
    return model, dssm.FullAlignment(model, **GUIDE)


def driven(control_dim=0):
    model = dssm.DVBF(X, 3, emission="gaussian", mlp_dims=(6,), control_dim=control_dim)
    return model, dssm.NoiseGuide(model, **GUIDE)


def fused(control_dim=0):
    model = dssm.LocallyLinearSSM(X, 3, emission="gaussian", mlp_dims=(6,), control_dim=control_dim)
    return model, dssm.FusionGuide(model, hidden_dim=6)


def kalman(cls, kind, **options):
    model = cls(X, 3, 2, mlp_dims=(6,), **options)
    return model, dssm.KalmanGuide(model, kind=kind, encoder_dims=(6,))


PAIRS = {
    **{name: (zoo, name) for name in dssm.ZOO},
    **{f"{name} guide": (guided, name) for name in dssm.GUIDES},
    **{f"flow around {name}": (guided, name, False) for name in dssm.GUIDES},
    **{f"conditional flow around {name}": (guided, name, True) for name in dssm.GUIDES},
    **{kind: (emitting, kind) for kind in ("bernoulli", "autoregressive", *POWER)},
    "many binary entries": (emitting, "autoregressive", 40),
    "many frames' entries": (emitting, "gaussian", 64),
    "fixed scale": (lambda: emitting("gaussian", scale=0.1),),
    "grey": (lambda: emitting("bernoulli", grey=True),),
    "residual gamma": (lambda: emitting("gamma", structure=dssm.ArSSM, skip=True, residual=True),),
    "gaussian start": (starting, "gaussian"),
    "hierarchical start": (starting, "hierarchical"),
    "controls": (lambda: starting("transition", control_dim=2),),
    "DVBF": (driven,),
    "DVBF with controls": (driven, 2),
    "LocallyLinearSSM": (fused,),
    "LocallyLinearSSM with controls": (fused, 2),
    **{
        f"{cls.__name__} {kind} {initial} {bound}": (
            lambda cls=cls, kind=kind, initial=initial, bound=bound: kalman(cls, kind, initial=initial, bound=bound),
        )
        for cls in (dssm.EKVAE, dssm.KVAE)
        for kind in ("smoothing", "filtering")
        for initial in ("gaussian", "hierarchical")
        for bound in ("joint", "collapsed")
    },
}
