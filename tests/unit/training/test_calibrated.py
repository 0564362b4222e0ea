"""`calibrate_and_impute`: the two of them, one after the other."""

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.evaluation import imputation
from pyro_dssm.training import calibrate_and_impute


def make():
    torch.manual_seed(0)
    model = dssm.FrameVAE(2, 1, mlp_dims=(4,), emission="gaussian", emission_options={"scale": 5.0})
    return model, dssm.MeanField(model)


def data(seed):
    return dssm.SequenceDataset(torch.randn(12, 10, 2, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize("num_sequences", [None, 5])
def test_it_is_calibration_then_imputation(num_sequences):
    few = {"num_samples": 39, "num_rounds": 1}
    mean = torch.ones(2)
    model, guide = make()
    found = calibrate_and_impute(
        model, guide, data(1), data(2), fraction=0.4, mean_frame=mean, num_sequences=num_sequences, seed=3, **few
    )
    assert model.calibrated
    other, its = make()
    valid, test = (part.subset(range(num_sequences or 12)) for part in (data(1), data(2)))
    calibration = dssm.calibrate(other, its, valid, fraction=0.4, seed=3, **few)
    expected = imputation(other, its, test, 0.4, mean_frame=mean, seed=3, **few)
    assert torch.equal(found.calibration.factor, calibration.factor)
    assert found.imputation.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": dssm.SequenceDataset(torch.randn(3, 5, 4))}, "valid: expected frames of size 2"),
        ({"test": dssm.SequenceDataset(torch.randn(3, 5, 4))}, "test: expected frames of size 2"),
        ({"num_sequences": 0}, "num_sequences: expected a positive integer or None"),
        ({"fraction": 1}, "fraction: expected"),
    ],
)
def test_wrong_arguments(change, message):
    model, guide = make()
    arguments = {"model": model, "guide": guide, "valid": data(1), "test": data(2), "num_samples": 39, "num_rounds": 1}
    with pytest.raises(ValueError, match=f"^{message}"):
        calibrate_and_impute(**{**arguments, **change})
