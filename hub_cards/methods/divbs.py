"""DivBS, as cards, README and command line know it."""

from hf_ext.hub_cards.methods.method import Method

METHOD = Method(
    name="divbs",
    title="DivBS",
    summary="a Trainer that trains on the part of every batch that represents it best, for a fraction of the work",
    description=(
        "DivBS, diversified batch selection (Hong et al., ICML 2024): every step draws a large batch of candidates "
        "and trains on the small part of it that stands for the whole."
    ),
    equation=(
        "A forward pass without gradients gives every candidate's last-layer gradient `g_i`, the outer product of its "
        "error at the logits and the last layer's input. Candidates are picked one by one, the next one being that "
        "whose gradient, less its projection on those picked before, has the largest inner product with the mean "
        "gradient of all candidates:\n\n"
        "`pick = argmax_i |<g_i - P g_i, mean_j g_j>|`, P the projection on the gradients picked so far\n\n"
        "A second copy of a sample adds no direction and is not picked. The update is the ordinary one, with the mean "
        "loss of the picked samples."
    ),
    paper="https://arxiv.org/abs/2406.04872",
    bibtex="""@inproceedings{hong2024diversified,
  title     = {Diversified Batch Selection for Training Acceleration},
  author    = {Hong, Feng and Lyu, Yueming and Yao, Jiangchao and Zhang, Ya and Tsang, Ivor and Wang, Yanfeng},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2406.04872}
}""",
    tags=("hf_ext", "divbs", "batch-selection", "efficient-training"),
    limitations=(
        "Every candidate costs a forward pass: time is saved if few are kept, and three times is the most. Samples "
        "are told apart by their last layer's gradients alone. On clean and easy data, taking the largest losses can "
        "do as well."
    ),
)
