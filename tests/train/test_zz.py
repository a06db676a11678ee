import json, torch
from pathlib import Path
from safetensors.torch import load_file
from llava.train.train import train
from test_gate_runs import gate_flags
from test_runs import flags
def test_bf16(llava_model, instruction_data, tmp_path):
    train(argv=gate_flags(llava_model, instruction_data, tmp_path/"o", "--bf16","True","--report_to","tensorboard","--dataloader_num_workers","1","--dataloader_persistent_workers","True"))
    h=json.loads((tmp_path/"o"/"trainer_state.json").read_text())["log_history"]
    print(h[0]); print(list((tmp_path/"o").iterdir())); print({k:v.dtype for k,v in load_file(tmp_path/"o"/"gates.safetensors").items()})
def test_startend(language_model, vision_tower, caption_data, instruction_data, tmp_path):
    train(argv=flags(language_model, vision_tower, caption_data, tmp_path/"p","--version","plain","--tune_mm_mlp_adapter","True","--mm_use_im_start_end","True","--mm_use_im_patch_token","True"))
    w=torch.load(tmp_path/"p"/"mm_projector.bin",weights_only=True); print({k:v.shape for k,v in w.items()})
    train(argv=flags(language_model, vision_tower, instruction_data, tmp_path/"f","--version","v1","--mm_use_im_start_end","True","--mm_use_im_patch_token","True","--bf16","True","--pretrain_mm_mlp_adapter",str(tmp_path/"p"/"mm_projector.bin"),"--dataloader_num_workers","1"))
    w=load_file(tmp_path/"f"/"model.safetensors"); print({k:(v.shape,v.dtype) for k,v in w.items() if "embed" in k or "head" in k})
def test_textonly(language_model, instruction_data, tmp_path):
    p,i=instruction_data
    r=[x for x in json.loads(p.read_text()) if "image" not in x]
    (tmp_path/"t.json").write_text(json.dumps(r))
    a=flags(language_model,"X",(tmp_path/"t.json",i),tmp_path/"t","--version","v1"); k=a.index("--vision_tower"); del a[k:k+2]
    train(argv=a); print(json.loads((tmp_path/"t"/"config.json").read_text())["architectures"])
